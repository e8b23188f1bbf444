"""What a trained net is for: films classified, decisions explained, files for other programs.

Enters: a checkpoint and films. Leaves: tables, pictures, ONNX. Never: a weight is changed.
"""
