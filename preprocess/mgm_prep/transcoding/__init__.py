"""H.264 copies of a data set, made by `mgm-prep transcode`. (`--no-vectors transcode` is motion/x264.py.)"""
