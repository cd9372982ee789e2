"""Running a trained network: runtime choices, stored facts and weights, prediction over cases."""
