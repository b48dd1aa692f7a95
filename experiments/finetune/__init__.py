"""Fine-tunes a language model by zeroth-order methods: MeZO (Malladi et al. 2023) and FZOO (Dang et al. 2025)."""
