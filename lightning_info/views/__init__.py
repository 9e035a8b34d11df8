"""The views that the tab in TensorBoard and the report share: one file each, from the logs of runs to panels."""
