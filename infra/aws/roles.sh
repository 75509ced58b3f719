#!/usr/bin/env bash
# Makes the bucket and the two roles of cluster/aws.yaml in your account. Run it again after a failure: what is there stays.
#   bash infra/aws/roles.sh my-bucket us-west-2
set -euo pipefail
bucket=$1 region=$2
here=$(cd "$(dirname "$0")" && pwd)
account=$(aws sts get-caller-identity --query Account --output text)
# Your bucket and account in place of the files' examples.
filled() { sed -e "s/my-bucket/$bucket/g" -e "s/123456789012/$account/g" "$here/$1"; }

aws s3api head-bucket --bucket "$bucket" 2>/dev/null || aws s3 mb "s3://$bucket" --region "$region"
aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
aws s3api put-bucket-lifecycle-configuration --bucket "$bucket" --lifecycle-configuration "$(filled bucket-lifecycle.json)"

# Amazon starts spot machines through this role; an account that never had one lacks it.
aws iam get-role --role-name AWSServiceRoleForEC2Spot >/dev/null 2>&1 \
    || aws iam create-service-linked-role --aws-service-name spot.amazonaws.com

for name in deltasae-head deltasae-worker; do
    aws iam get-role --role-name "$name" >/dev/null 2>&1 \
        || aws iam create-role --role-name "$name" --assume-role-policy-document "$(filled ec2-trust.json)"
    aws iam put-role-policy --role-name "$name" --policy-name bucket --policy-document "$(filled bucket-policy.json)"
    if ! aws iam get-instance-profile --instance-profile-name "$name" >/dev/null 2>&1; then
        aws iam create-instance-profile --instance-profile-name "$name"
        aws iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
    fi
done
aws iam put-role-policy --role-name deltasae-head --policy-name machines --policy-document "$(filled head-policy.json)"
