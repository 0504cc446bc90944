"""What every room stands on: errors, closed sets of names, processes, the state folder. It knows no other room."""
