"""One function for each command of mgm-train: typed configuration in, a result out; no command line here."""
