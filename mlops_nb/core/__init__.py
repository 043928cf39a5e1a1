"What everything stands on: errors, settings, secrets, locks, the cluster, tables, the audit log."
