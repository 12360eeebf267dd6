"""Smaller vocabularies: choose the tokens to keep, and write a model and a tokenizer that have these alone.

`tokenizer_file` reads and cuts a tokenizer.json, `choice` decides what stays, `trim` writes the model directory, and
`model_vocabulary` does all of this for a model and data.
"""
