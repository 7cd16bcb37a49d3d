"""Who is who: identities in certificates, the federation's CA, join tokens, enrolment and signatures."""
