"""The extraction: plan, parts, rejected videos, labels, and what happens when files change."""
