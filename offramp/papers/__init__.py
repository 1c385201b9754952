"""The papers' tables, figures and claims as data, the trainings behind them, and what a ledger has of each."""
