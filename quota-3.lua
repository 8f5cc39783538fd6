policy
show
quota
--version
3
--source
