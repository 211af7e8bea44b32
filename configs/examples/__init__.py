"""Examples of what a newcomer changes: another model, another objective, another task, another
corpus.
"""
