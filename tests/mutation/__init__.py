"""Changes of what decides, folds and lands, and the tests that must notice."""
