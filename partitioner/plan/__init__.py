"""The Plan file: decisions and derived figures, read and checked without a model.

    json_document, derived_rows, migrate --> plan --> timeline, sent_by_plan, check
"""
