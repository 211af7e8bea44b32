"""Examples of a custom model, objective, task and corpus."""
