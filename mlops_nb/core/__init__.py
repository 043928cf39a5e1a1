"What everything stands on: settings, secrets, the cluster, tables, the audit log."
