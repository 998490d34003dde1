"""The room of the web page and the API over topa.answer; nothing is in it yet."""
