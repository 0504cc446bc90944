"""Closed sets of names that tables, metrics and logs share."""

from __future__ import annotations

from enum import StrEnum


class Stream(StrEnum):
    PREDICTIONS = "predictions"
    LABELS = "labels"


class RejectReason(StrEnum):
    """Why a record is no event."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_ID = "no_id"
    NO_MODEL = "no_model"
    UNKNOWN_MODEL = "unknown_model"
    NO_TIMESTAMP = "no_timestamp"
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    NO_PREDICTION = "no_prediction"
    NO_LABEL = "no_label"
    UNREADABLE = "unreadable"


class ActivityKind(StrEnum):
    """What can happen to a model."""

    RULE_FIRED = "rule_fired"
    RULE_RESOLVED = "rule_resolved"
    RETRAIN_REQUESTED = "retrain_requested"
    RETRAIN_SUPPRESSED = "retrain_suppressed"
    SHADOW = "shadow"
    AWAITING_APPROVAL = "awaiting_approval"
    CANARY = "canary"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
