"""Software-defined assets, a module a stage: each calls the core and reports, nothing else."""
