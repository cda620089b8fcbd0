"""The one Django field for exact numbers: Decimal in Python, nanos (int64 of 1e-9) in PostgreSQL."""

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import models

from integration.market.units import decimal_from_nanos, nanos_from_decimal

if TYPE_CHECKING:
    DecimalColumn = models.Field[Decimal | int | str, Decimal]
else:
    # The stubs' type parameters do not exist at run time.
    DecimalColumn = models.Field


class NanosField(DecimalColumn):
    """Store a decimal number with at most nine places as a signed 64-bit integer; `Decimal` on the Python side."""

    def get_internal_type(self) -> str:
        return "BigIntegerField"

    def from_db_value(self, value: int | None, *_: object) -> Decimal | None:
        return None if value is None else decimal_from_nanos(value)

    def to_python(self, value: Any) -> Decimal | None:
        if value is None or isinstance(value, Decimal):
            return value
        try:
            number = Decimal(str(value))
            nanos_from_decimal(number)
        except (ArithmeticError, ValueError) as problem:
            raise ValidationError(str(problem), code="number") from problem
        return number

    def get_prep_value(self, value: Any) -> int | None:
        number = self.to_python(value)
        return None if number is None else nanos_from_decimal(number)

    def formfield(self, **kwargs: Any) -> forms.Field | None:
        return super().formfield(**{"form_class": forms.DecimalField, "decimal_places": 9, **kwargs})
