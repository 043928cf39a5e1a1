"A model version: its files, its role, who approved it."
