"""The control database: jobs, leases, holds, traffic and the audit log, each change in one transaction."""
