"""The gate: what is drawn, compared and told before anything is published."""
