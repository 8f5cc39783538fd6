-- The services that are part of symphony: names of modules.
return {}
