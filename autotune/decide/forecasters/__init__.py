"""Forecasters: how learning curves go on."""
