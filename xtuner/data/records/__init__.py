"""What users give: formats of records, and JSON files of any size read record by record."""
