"""Forward passes of zeroth-order methods (MeZO, FZOO, ZO-Muon and AGZO) on a language model, until a given loss."""
