"""Joins every app's addresses."""

from django.contrib import admin
from django.urls import include, path

from distribution import probes
from integration import trace_admin

urlpatterns = [
    *trace_admin.urlpatterns,
    path("admin/", admin.site.urls),
    *probes.urlpatterns,
    path("", include("distribution.urls")),
]
