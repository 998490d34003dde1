"""The room of pipelines over many machines; nothing is in it yet."""
