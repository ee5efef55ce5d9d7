"""The Gradio Space: what people put on the open web."""
