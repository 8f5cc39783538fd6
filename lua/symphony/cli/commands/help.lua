local errors = require "symphony.errors"

return {
  name = "help",
  summary = "How symphony, or one of its commands, is used",
  where = "client",
  args = function(parser)
    parser:argument("topic", "The words of a command, such as: kv put"):args("*"):argname("COMMAND")
  end,
  run = function(ctx)
    local parser = require "symphony.cli.parser"
    local words = ctx.args.topic
    local text = #words == 0 and parser.overview(ctx.own and ctx.own()) or nil
    if not text then
      local err
      text, err = parser.help(words)
      if not text then
        return nil, errors.from(err)
      end
    end
    return { help = text }, {
      text = function(data)
        return data.help
      end,
    }
  end,
}
