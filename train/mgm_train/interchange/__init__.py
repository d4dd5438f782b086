"""A trained model in the formats of other programs: transformers, timm, ONNX, one safetensors file."""
