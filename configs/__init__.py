"""YAML configs and LazyConfigs, by the names of nl_detectron.model_zoo."""
