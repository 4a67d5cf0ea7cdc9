"""Results for people: the HTML report and the spreadsheet."""
