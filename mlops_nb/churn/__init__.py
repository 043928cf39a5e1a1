"What the reference workflow, customer churn, exports."
