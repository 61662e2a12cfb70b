"""Models as sizes: shapes of shipped models, and shapes from Hugging Face configurations."""
