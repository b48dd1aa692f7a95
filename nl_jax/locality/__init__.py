"""The locality audit: what each update depends on."""
