#!/usr/bin/env bash
# Makes the bucket and the workers' service account of cluster/gcp.yaml and cluster/kuberay/gke. Run it again after a failure: what is there
# stays.
#   bash infra/gcp/roles.sh my-project my-bucket us-central1
set -euo pipefail
project=$1 bucket=$2 region=$3
account="deltasae-worker@$project.iam.gserviceaccount.com"

gcloud services enable compute.googleapis.com iam.googleapis.com container.googleapis.com artifactregistry.googleapis.com \
    cloudresourcemanager.googleapis.com --project "$project"
gcloud storage buckets describe "gs://$bucket" >/dev/null 2>&1 \
    || gcloud storage buckets create "gs://$bucket" --project "$project" --location "$region" \
        --uniform-bucket-level-access --public-access-prevention
gcloud iam service-accounts describe "$account" --project "$project" >/dev/null 2>&1 \
    || gcloud iam service-accounts create deltasae-worker --project "$project" --display-name "Ray nodes of deltasae"
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member "serviceAccount:$account" --role roles/storage.objectUser
gcloud projects add-iam-policy-binding "$project" --member "serviceAccount:$account" --role roles/artifactregistry.reader --condition None
# On GKE the pods' own account acts as it. Fails where the project has no GKE cluster with workload identity yet: run it again then.
gcloud iam service-accounts add-iam-policy-binding "$account" --project "$project" --role roles/iam.workloadIdentityUser \
    --member "serviceAccount:$project.svc.id.goog[deltasae/deltasae]"
