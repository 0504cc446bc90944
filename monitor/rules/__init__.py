"""Pure: windows, measurements and rules go in; verdicts, phases and causes to retrain come out."""
