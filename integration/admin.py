"""The operators' desk: joins the three parts and names the index page. Decisions call `services`, never write by themselves."""

from django.contrib import admin

from integration.flow_admin import AlertAdmin, BatchAdmin, GapAdmin, JobAdmin, OutgoingMessageAdmin, SubscriptionAdmin
from integration.quarantine_admin import QuarantinedEventAdmin
from integration.reference_admin import InstrumentAdmin, InstrumentAliasAdmin, IssuerAdmin, SourceAdmin, VenueAdmin

__all__ = [
    "AlertAdmin",
    "BatchAdmin",
    "GapAdmin",
    "InstrumentAdmin",
    "InstrumentAliasAdmin",
    "IssuerAdmin",
    "JobAdmin",
    "OutgoingMessageAdmin",
    "QuarantinedEventAdmin",
    "SourceAdmin",
    "SubscriptionAdmin",
    "VenueAdmin",
]

admin.site.index_title = "Work queue"
admin.site.index_template = "admin/integration/index.html"
admin.site.empty_value_display = "–"
