"""driftd, acting: request -> snapshot -> train -> evaluate -> decide -> promote or reject, watch, roll back."""
