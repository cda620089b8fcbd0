"""The manifest of days in the lake, and a small index that finds the bars of a batch (retention keeps those batches' times)."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("integration", "0004_timeline")]

    operations = [
        migrations.CreateModel(
            name="LakeDay",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("table", models.CharField(max_length=16)),
                ("day", models.DateField()),
                (
                    "generation",
                    models.BigIntegerField(
                        help_text="Rises with every write of the day; the lake's transaction version."
                    ),
                ),
                ("delta_version", models.BigIntegerField()),
                ("row_count", models.BigIntegerField()),
                ("checksum", models.BigIntegerField(help_text="Of all columns of all rows, in any order.")),
                ("archived_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["table", "day"],
                "constraints": [models.UniqueConstraint(fields=("table", "day"), name="lake_day_once")],
            },
        ),
        # Bars are written in the order of pub_seq: a few pages of BRIN, where a B-tree would cost every bar.
        migrations.RunSQL(
            "CREATE INDEX integration_bar_pub_seq_brin ON integration_bar USING brin (pub_seq)",
            "DROP INDEX integration_bar_pub_seq_brin",
        ),
    ]
