"""ONNX and OpenVINO exports, verified against the original model."""
