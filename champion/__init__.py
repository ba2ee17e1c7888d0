"""The champion: which model is in use, who may replace it, and the record of who did."""
