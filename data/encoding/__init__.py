"""From rows to token ids: templates, tokenizers, truncation, and the store of tokens."""
