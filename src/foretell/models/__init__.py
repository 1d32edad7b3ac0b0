"""The predicting half's models: mapping, features, and layer models by name."""
