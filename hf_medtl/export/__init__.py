"""Export to ONNX and OpenVINO, with a parity check and a preprocessing specification."""
