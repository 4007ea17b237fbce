"""Many runs side by side: methods compared, methods attacked, a published table reproduced."""
