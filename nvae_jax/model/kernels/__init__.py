"""Formulations of operations that are fast on one platform, each beside the plain formula."""
