"""The Gradio Space: a page to try models on pictures, and its API."""
